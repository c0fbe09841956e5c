-- INSERT or DELETE: one entry for each row of the transition table, in chunks, so that no journal row grows large.
--
-- Placeholders: kind, label, rows (name of the transition table), entry (json of one row pgn), chunk_rows,
-- chunk_bytes.
-- One row is the common case and gets a statement without windows and groups (2 us instead of 8).

if tg_op = {kind} then
    select pg_catalog.count(*) into pgn_touched from {rows};
    if pgn_touched = 1 then
        insert into pgnotify_gql.journal (label, kind, rows, context)
        select {label}, {kind}, pg_catalog.json_build_array({entry}),
               pg_catalog.current_setting('pgnotify_gql.context', true)
        from {rows} as pgn;
    else
        insert into pgnotify_gql.journal (label, kind, rows, context)
        select {label}, {kind}, pg_catalog.json_agg(sized.entry order by sized.number),
               pg_catalog.current_setting('pgnotify_gql.context', true)
        from (
            select made.entry, made.number,
                   made.number / {chunk_rows} as chunk,
                   pg_catalog.sum(pg_catalog.octet_length(made.entry::pg_catalog.text))
                       over (rows unbounded preceding) / {chunk_bytes} as part
            from (
                select {entry} as entry, pg_catalog.row_number() over () as number
                from {rows} as pgn
            ) as made
        ) as sized
        group by sized.chunk, sized.part
        order by pg_catalog.min(sized.number);
    end if;
end if;
