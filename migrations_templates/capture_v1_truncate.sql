-- TRUNCATE: one change of the whole table, without a key.
--
-- Placeholders: label.

if tg_op = 'TRUNCATE' then
    insert into pgnotify_gql.journal (label, kind, rows, context)
    values ({label}, 'TRUNCATE', '[[null]]', pg_catalog.current_setting('pgnotify_gql.context', true));
end if;
