-- Captures only rows for which the watch's condition holds, if that can be found out.
--
-- Placeholders: tests (a statement that evaluates the condition, for each side), label, conditional, unconditional.
--
-- No user's write may fail because of a condition: its columns may have been renamed, dropped or given another type,
-- and it may divide by zero.  So it is tried first, where an error can be caught; nothing is written there, so this
-- subtransaction takes no id.

begin
    {tests}
    pgn_decidable := true;
exception when others then
    pgn_decidable := false;
    raise warning 'pgnotify_gql: the condition of the watch of % cannot be evaluated (%), so every change is captured: mend it and run install_triggers', {label}, sqlerrm;
end;
if pgn_decidable then
    {conditional}
else
    {unconditional}
end if;
