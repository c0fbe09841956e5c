-- One row is the common case and gets a statement without windows and groups (2 us instead of 8).
--
-- Placeholders: rows (name of a transition table), one, many.

select pg_catalog.count(*) into pgn_touched from {rows};
if pgn_touched = 1 then
    {one}
else
    {many}
end if;
