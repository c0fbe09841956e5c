-- Removes the journal and, by cascade, every trigger function and trigger that writes into it, so that no write
-- of the application can fail for want of a journal.
--
-- Placeholders: none.  Run by: the reverse of migration 0001.

drop schema if exists pgnotify_gql cascade;
