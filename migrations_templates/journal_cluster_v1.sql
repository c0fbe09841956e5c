-- The cluster of databases (pg_control_system) in whose transaction ids the journal counts, and the era, which ends when
-- the database may have forgotten something: see journal/state.py.  Epochs come from the clock.
--
-- Placeholders: none.  Run by: migration 0002 of the application pgnotify_gql.

alter table pgnotify_gql.journal_state add column if not exists cluster text;
drop sequence if exists pgnotify_gql.epoch;

-- One row.  PostgreSQL empties an unlogged table when it recovers from a crash, and a replica that is promoted finds it
-- empty; a clean restart keeps it.  The next leader writes another then.
create unlogged table if not exists pgnotify_gql.journal_era (
    one boolean primary key default true check (one),
    era uuid not null default pg_catalog.gen_random_uuid(),
    -- Up to where earlier leaders had relayed, as far as the database remembers.
    began pg_snapshot not null
);
insert into pgnotify_gql.journal_era (began) values (pg_catalog.pg_current_snapshot()) on conflict do nothing;
