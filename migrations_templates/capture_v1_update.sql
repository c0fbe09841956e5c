-- UPDATE: rows that really differ, found by key.  A changed key is a DELETE of the old one and an INSERT of the new.
--
-- Placeholders: label, same_key (old against new), old_key_missing, new_key_missing (is null of the joined side),
-- update_entry, delete_entry (of pgn_old), insert_entry (of pgn_new), kinds (text[]), chunk_rows, chunk_bytes.
--
-- *<> compares the images of whole rows, which works for types without an equality (json) too.  Rows are written with
-- .* because a bare pgn_old is the column of that name where a table has one.
-- One row is the common case and gets statements of its own.  Many rows are paired by a FULL JOIN: it finds changed
-- keys, and it is the one join that cannot become a nested loop when the plan was made for few rows and kept.

if tg_op = 'UPDATE' then
    select pg_catalog.count(*) into pgn_touched from pgn_new_rows;
    if pgn_touched = 1 then
        insert into pgnotify_gql.journal (label, kind, rows, context)
        select {label}, 'UPDATE', pg_catalog.json_build_array({update_entry}),
               pg_catalog.current_setting('pgnotify_gql.context', true)
        from pgn_old_rows as pgn_old cross join pgn_new_rows as pgn_new
        where {same_key} and pgn_old.* *<> pgn_new.* and 'UPDATE' = any ({kinds});
        if not found then
            insert into pgnotify_gql.journal (label, kind, rows, context)
            select {label}, changed.kind, pg_catalog.json_build_array(changed.entry),
                   pg_catalog.current_setting('pgnotify_gql.context', true)
            from pgn_old_rows as pgn_old cross join pgn_new_rows as pgn_new
            cross join lateral (values (1, 'DELETE', {delete_entry}), (2, 'INSERT', {insert_entry}))
                as changed (number, kind, entry)
            where not ({same_key}) and changed.kind = any ({kinds})
            order by changed.number;
        end if;
    else
        insert into pgnotify_gql.journal (label, kind, rows, context)
        select {label}, sized.kind, pg_catalog.json_agg(sized.entry order by sized.number),
               pg_catalog.current_setting('pgnotify_gql.context', true)
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
                    select case when {new_key_missing} then 'DELETE'
                                when {old_key_missing} then 'INSERT'
                                else 'UPDATE' end as kind,
                           {update_entry} as update_entry,
                           {delete_entry} as delete_entry,
                           {insert_entry} as insert_entry
                    from pgn_old_rows as pgn_old full join pgn_new_rows as pgn_new on {same_key}
                    where {new_key_missing} or {old_key_missing} or pgn_old.* *<> pgn_new.*
                ) as paired
                where paired.kind = any ({kinds})
            ) as made
        ) as sized
        group by sized.kind, sized.chunk, sized.part
        order by pg_catalog.min(sized.number);
    end if;
end if;
