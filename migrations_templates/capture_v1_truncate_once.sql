-- Whether this TRUNCATE is news: one of a parent fires the triggers of all its children and partitions as well.
--
-- Placeholders: label.

not exists (
    select from pgnotify_gql.journal as last
    where last.xid = pg_catalog.pg_current_xact_id() and last.label = {label} and last.kind = 'TRUNCATE'
      and not exists (
          select from pgnotify_gql.journal as later
          where later.xid = last.xid and later.label = {label} and later.id > last.id
      )
)
