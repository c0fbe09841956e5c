-- INSERT or DELETE of many rows: one entry for each, in chunks, so that no journal row grows large.
--
-- Placeholders: label, kind, source (as pgn), entry (json of one row), wanted (the watch's condition), chunk_rows,
-- chunk_bytes.

insert into pgnotify_gql.journal (label, kind, rows, context)
select {label}, {kind}, pg_catalog.json_agg(sized.entry order by sized.number), pgn_context
from (
    select made.entry, made.number,
           made.number / {chunk_rows} as chunk,
           pg_catalog.sum(pg_catalog.octet_length(made.entry::pg_catalog.text))
               over (rows unbounded preceding) / {chunk_bytes} as part
    from (
        select {entry} as entry, pg_catalog.row_number() over () as number
        from {source} as pgn
        where {wanted}
    ) as made
) as sized
group by sized.chunk, sized.part
order by pg_catalog.min(sized.number);
