-- Makes a row-level trigger function that is bound to its table, see pgnotify_gql.capture.function.bind.
--
-- Placeholders: statement (CREATE FUNCTION, as a literal), unbound (what stands in it for the table, as a literal),
-- table (its quoted name, as a literal).
-- Rendered by: pgnotify_gql.capture.script.  The body of a DO statement, for migrations: the table's oid is found out
-- when it runs.

begin
    execute pg_catalog.replace(
        {statement},
        {unbound},
        pg_catalog.format('%L::pg_catalog.regclass', {table}::pg_catalog.regclass::pg_catalog.oid)
    );
end
