-- The cluster of databases (pg_control_system) in whose transaction ids the journal counts, see journal/state.py.
-- Epochs come from the clock.
--
-- Placeholders: none.  Run by: migration 0002 of the application pgnotify_gql.

alter table pgnotify_gql.journal_state add column if not exists cluster text;
drop sequence if exists pgnotify_gql.epoch;
