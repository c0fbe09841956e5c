-- UPDATE of many rows: those that differ.  A changed key is a DELETE of the old one and an INSERT of the new.
--
-- Placeholders: label, old_source, new_source, same_key, differs, update_entry, delete_entry (of pgn_old), insert_entry
-- (of pgn_new), wanted (the watch's condition, before or after), kinds (text[]), chunk_rows, chunk_bytes.
--
-- Rows are paired by their place: PostgreSQL writes the old and the new row of each update side by side.  A key would
-- not do: cascades of several foreign keys update a row more than once, all within one pair of transition tables.
-- A FULL JOIN, because it is the one join that cannot become a nested loop when the plan was made for few rows and kept.
--
-- Rows whose keys shift onto each other must be gone before they come; a cascade may update a row that has come.

insert into pgnotify_gql.journal (label, kind, rows, context)
select {label}, sized.kind, pg_catalog.json_agg(sized.entry order by sized.number), pgn_context
from (
    select made.kind, made.entry, made.number,
           made.number / {chunk_rows} as chunk,
           pg_catalog.sum(pg_catalog.octet_length(made.entry::pg_catalog.text))
               over (rows unbounded preceding) / {chunk_bytes} as part
    from (
        select changed.kind,
               case changed.kind
                   when 'UPDATE' then {update_entry}
                   when 'DELETE' then {delete_entry}
                   else {insert_entry}
               end as entry,
               pg_catalog.row_number() over (order by changed.step, pgn_old.place) as number
        from (select pgn.*, pg_catalog.row_number() over () as place from {old_source} as pgn) as pgn_old
        full join (select pgn.*, pg_catalog.row_number() over () as place from {new_source} as pgn) as pgn_new
            on pgn_old.place = pgn_new.place
        join (values (1, 'DELETE', false), (2, 'INSERT', false), (3, 'UPDATE', true)) as changed (step, kind, same_key)
            on changed.same_key = (({same_key}) is true) and changed.kind = any ({kinds})
        where (not changed.same_key or {differs}) and {wanted}
    ) as made
) as sized
group by sized.kind, sized.chunk, sized.part
order by pg_catalog.min(sized.number);
