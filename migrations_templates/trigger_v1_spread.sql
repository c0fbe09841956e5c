-- Makes a trigger on a table and on all that descend from it now.
--
-- Placeholders: table (its quoted name, as a literal), statements (each ends with a semicolon and runs one of the
-- statements that make the trigger, for the table pgn_table).
-- Rendered by: pgnotify_gql.capture.script.  The body of a DO statement, for migrations: which partitions or children
-- there are is found out when it runs.

declare
    pgn_table pg_catalog.regclass;
begin
    for pgn_table in
        with recursive family (oid) as (
            select {table}::pg_catalog.regclass::pg_catalog.oid
            union
            select i.inhrelid from family join pg_catalog.pg_inherits as i on i.inhparent = family.oid
        )
        select family.oid from family
    loop
        {statements}
    end loop;
end
