-- TRUNCATE: one change of the whole table, without a key.
--
-- Placeholders: label, wanted.

insert into pgnotify_gql.journal (label, kind, rows, context)
select {label}, 'TRUNCATE', '[[null]]', pgn_context
where {wanted};
