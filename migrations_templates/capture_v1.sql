-- The trigger function of one watch.
--
-- Placeholders: function (qualified name), settings (further SET clauses), tag (of the dollar quotes), suppressed
-- (value of the setting), branches (what to do for each kind), bell.
-- Rendered by: pgnotify_gql.capture.render.
--
-- SECURITY DEFINER: whoever may write the table needs no right on the journal.  Every name is qualified, and the
-- search_path is fixed besides for what cannot be qualified (operators, output functions of extension types).
-- #variable_conflict: the table may have columns named like variables of this function.

create or replace function {function}() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp {settings}
as {tag}
#variable_conflict use_column
declare
    pgn_context pg_catalog.text := pg_catalog.current_setting('pgnotify_gql.context', true);
    pgn_decidable pg_catalog.bool;
begin
    if pgn_context = {suppressed} then
        return null;
    end if;
    {branches}
    if not found then
        return null;
    end if;
    {bell}
    return null;
end
{tag}
