-- Rings the doorbell, but only if the listener sleeps (or is gone): it holds this lock exclusively while awake.
--
-- Taken and released within one expression: without a cancel point in between, the lock cannot leak.  The journal
-- row is inserted before, so this transaction has an xid, and a listener that is falling asleep waits for it.
-- The parentheses matter: PL/pgSQL reads `if` up to the first `then`.
-- Placeholders: lock_class, awake_lock, notify_channel.

if (case when pg_catalog.pg_try_advisory_lock_shared({lock_class}, {awake_lock})
         then pg_catalog.pg_advisory_unlock_shared({lock_class}, {awake_lock})
         else false end) then
    perform pg_catalog.pg_notify({notify_channel}, '');
end if;
