-- UPDATE of one row, if it differs.  A changed key is a DELETE of the old one and an INSERT of the new.
--
-- Placeholders: label, old_source, new_source, same_key, differs, update_entry, delete_entry (of pgn_old), insert_entry
-- (of pgn_new), wanted (the watch's condition, before or after), kinds (text[]).
--
-- A key that is missing is not the same as itself, and so is one that was deleted and one that was inserted, of which
-- nobody knows which.

insert into pgnotify_gql.journal (label, kind, rows, context)
select {label}, 'UPDATE', pg_catalog.json_build_array({update_entry}), pgn_context
from {old_source} as pgn_old cross join {new_source} as pgn_new
where {same_key} and {differs} and {wanted} and 'UPDATE' = any ({kinds});
if not found then
    insert into pgnotify_gql.journal (label, kind, rows, context)
    select {label}, changed.kind, pg_catalog.json_build_array(changed.entry), pgn_context
    from {old_source} as pgn_old cross join {new_source} as pgn_new
    cross join lateral (values (1, 'DELETE', {delete_entry}), (2, 'INSERT', {insert_entry}))
        as changed (number, kind, entry)
    where ({same_key}) is not true and {wanted} and changed.kind = any ({kinds})
    order by changed.number;
end if;
