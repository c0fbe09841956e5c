-- The trigger function of one watched table.
--
-- Placeholders: function (qualified name), settings (further SET clauses), body (a branch for each kind), bell.
-- Rendered by: pgnotify_gql.capture.render.
--
-- SECURITY DEFINER: whoever may write the table needs no right on the journal.  Every name is qualified, and the
-- search_path is fixed besides for what cannot be qualified (output functions of extension types).
-- #variable_conflict: the table may have columns named like variables of this function.

create or replace function {function}() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp {settings}
as $pgnotify_gql$
#variable_conflict use_column
declare
    pgn_touched bigint;
begin
    {body}
    if not found then
        return null;
    end if;
    {bell}
    return null;
end
$pgnotify_gql$
