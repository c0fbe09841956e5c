-- INSERT or DELETE of one row.
--
-- Placeholders: label, kind, source (as pgn), entry (json of the row), wanted (the watch's condition).

insert into pgnotify_gql.journal (label, kind, rows, context)
select {label}, {kind}, pg_catalog.json_build_array({entry}), pgn_context
from {source} as pgn
where {wanted};
