-- Removes the journal and, by cascade, every trigger function and trigger that writes into it, so that no write
-- of the application can fail for want of a journal.
--
-- Placeholders: none.  Run by: the reverse of migration 0001, in one transaction.
--
-- Each watched table is locked for it, and whoever writes one queues behind a lock that is waited for: not for long.
-- uninstall_triggers asks for the locks without queueing, and tries again.

set local lock_timeout = '2s';

do $pgnotify_gql$
begin
    drop schema if exists pgnotify_gql cascade;
exception when lock_not_available or deadlock_detected then
    raise exception using
        errcode = 'lock_not_available',
        message = 'the journal is still there, because a watched table or the journal itself was locked for 2 s',
        hint = 'Run `manage.py uninstall_triggers` first, stop every listener, and try again when it is less busy.';
end
$pgnotify_gql$;
