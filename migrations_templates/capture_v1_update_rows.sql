-- UPDATE of many rows: those that differ, found by key.  A changed key is a DELETE of the old one and an INSERT of the
-- new.
--
-- Placeholders: label, old_source, new_source, same_key, differs, update_entry, delete_entry (of pgn_old), insert_entry
-- (of pgn_new), wanted (the watch's condition, before or after), kinds (text[]), chunk_rows, chunk_bytes.
--
-- Rows are paired by a FULL JOIN: it finds changed keys, and it is the one join that cannot become a nested loop when
-- the plan was made for few rows and kept.

insert into pgnotify_gql.journal (label, kind, rows, context)
select {label}, sized.kind, pg_catalog.json_agg(sized.entry order by sized.number), pgn_context
from (
    select made.kind, made.entry, made.number,
           made.number / {chunk_rows} as chunk,
           pg_catalog.sum(pg_catalog.octet_length(made.entry::pg_catalog.text))
               over (rows unbounded preceding) / {chunk_bytes} as part
    from (
        select paired.kind,
               case paired.kind
                   when 'UPDATE' then paired.update_entry
                   when 'DELETE' then paired.delete_entry
                   else paired.insert_entry
               end as entry,
               pg_catalog.row_number() over () as number
        from (
            select case when pgn_new.here is null then 'DELETE'
                        when pgn_old.here is null then 'INSERT'
                        else 'UPDATE' end as kind,
                   {update_entry} as update_entry,
                   {delete_entry} as delete_entry,
                   {insert_entry} as insert_entry
            from {old_source} as pgn_old full join {new_source} as pgn_new on {same_key}
            where (pgn_new.here is null or pgn_old.here is null or {differs}) and {wanted}
        ) as paired
        where paired.kind = any ({kinds})
    ) as made
) as sized
group by sized.kind, sized.chunk, sized.part
order by pg_catalog.min(sized.number);
