-- The journal: what trigger functions write and the listener and the hubs read.
--
-- Makes: schema pgnotify_gql with the journal and its three slots, the state of the feed, two sequences.
-- Placeholders: none.  Run by: migration 0001 of the application pgnotify_gql, in one transaction.

create schema pgnotify_gql;

-- Which slot is written: the value modulo 3.  A sequence, because reading its last value costs half a
-- microsecond and no snapshot, and because advancing it reaches every writer at once.
create sequence pgnotify_gql.journal_slot as bigint minvalue 0 start 0 cache 1;
select pg_catalog.setval('pgnotify_gql.journal_slot', 0);

-- One value a term of leadership.
create sequence pgnotify_gql.epoch as bigint cache 1;

create table pgnotify_gql.journal (
    -- CACHE 1: an id is taken at the end of a statement, while its rows are locked, so that ids are in causal
    -- order for each row; a session that kept a cache of ids would break that.
    id bigint not null generated always as identity (cache 1),
    xid xid8 not null default pg_catalog.pg_current_xact_id(),
    slot smallint not null
        default (pg_catalog.pg_sequence_last_value('pgnotify_gql.journal_slot'::pg_catalog.regclass) % 3),
    label text not null,
    kind text not null,
    -- json and not jsonb: written as text and read as text, it is never taken apart here, saves the writer
    -- 0.7 us of 6 a row (PostgreSQL 18), and bears values above the 256 MB that jsonb refuses.
    rows json not null,
    -- What change_context() attached, as text: a bad value set by hand must not fail the write.
    context text,
    at timestamptz not null default pg_catalog.clock_timestamp()
) partition by list (slot);

create table pgnotify_gql.journal_0 partition of pgnotify_gql.journal for values in (0);
create table pgnotify_gql.journal_1 partition of pgnotify_gql.journal for values in (1);
create table pgnotify_gql.journal_2 partition of pgnotify_gql.journal for values in (2);

create index journal_xid_id on pgnotify_gql.journal (xid, id);

-- One row.  relayed: the cursor up to which changes went to the channel layer, stored at relayed_at (-infinity when no
-- leader holds it).  emptied_xid, emptied: the newest
-- transaction whose rows were removed, and the snapshot at that time; a cursor that could miss it is too old.
create table pgnotify_gql.journal_state (
    one boolean primary key default true check (one),
    journal_id uuid not null default pg_catalog.gen_random_uuid(),
    epoch bigint not null default 0,
    relayed pg_snapshot not null default pg_catalog.pg_current_snapshot(),
    relayed_at timestamptz not null default '-infinity',
    rotated_at timestamptz not null default pg_catalog.clock_timestamp(),
    emptied_xid xid8 not null default '0',
    emptied pg_snapshot not null default pg_catalog.pg_current_snapshot()
) with (fillfactor = 10);

insert into pgnotify_gql.journal_state default values;
