"""
What writers do to the table: one statement each, which notes in the ledger what it has changed.

Rows are locked in the order of their keys, which spares the server most deadlocks, and before they are changed, so that
the bucket they are moved out of is the one they have.  A statement answers how many rows it has changed, and the id of
its transaction (None if there was no row).

Placeholders: ``first`` and ``last``, or ``keys``; ``shift``, by how much rows move on to another bucket.
"""

from __future__ import annotations

INSERT = """
    with made as (
        insert into pgnotify_gql.verification (key, version, bucket)
        select n, nextval('pgnotify_gql.verification_version'), n %% 4
        from generate_series(%(first)s::bigint, %(last)s::bigint) as n
        on conflict do nothing
        returning key, version, bucket
    ), noted as (
        insert into pgnotify_gql.verification_ledger (key, version, deleted, old_bucket, new_bucket)
        select key, version, false, bucket, bucket from made
        returning xid
    )
    select count(*), min(xid) from noted
"""

UPSERT = """
    with made as (
        insert into pgnotify_gql.verification (key, version, bucket)
        select n, nextval('pgnotify_gql.verification_version'), n %% 4
        from unnest(%(keys)s::bigint[]) as n order by n
        on conflict (key) do update set version = excluded.version
        returning key, version, bucket
    ), noted as (
        insert into pgnotify_gql.verification_ledger (key, version, deleted, old_bucket, new_bucket)
        select key, version, false, bucket, bucket from made
        returning xid
    )
    select count(*), min(xid) from noted
"""

UPDATE = """
    with found as (
        select key, bucket from pgnotify_gql.verification
        where key = any(%(keys)s::bigint[]) order by key for update
    ), made as (
        update pgnotify_gql.verification as changed
        set version = nextval('pgnotify_gql.verification_version'), bucket = (changed.bucket + %(shift)s) %% 4
        from found where changed.key = found.key
        returning changed.key, changed.version, found.bucket as old_bucket, changed.bucket
    ), noted as (
        insert into pgnotify_gql.verification_ledger (key, version, deleted, old_bucket, new_bucket)
        select key, version, false, old_bucket, bucket from made
        returning xid
    )
    select count(*), min(xid) from noted
"""

DELETE = """
    with found as (
        select key from pgnotify_gql.verification
        where key = any(%(keys)s::bigint[]) order by key for update
    ), made as (
        delete from pgnotify_gql.verification as changed
        using found where changed.key = found.key
        returning changed.key, changed.version, changed.bucket
    ), noted as (
        insert into pgnotify_gql.verification_ledger (key, version, deleted, old_bucket, new_bucket)
        select key, version, true, bucket, bucket from made
        returning xid
    )
    select count(*), min(xid) from noted
"""

PROBE = """
    insert into pgnotify_gql.verification (key, version, bucket)
    select -n - 1, nextval('pgnotify_gql.verification_version'), n from generate_series(0, 3) as n
    on conflict (key) do update set version = excluded.version
"""
"""Changes a row of each bucket, with keys below 0, which nobody judges."""
