-- Drops the triggers that a watch does not want (any more), then every trigger function that no trigger uses.
--
-- Placeholders: table (its quoted name, as a literal), label, kept (text[], names of the triggers that stay).
-- Rendered by: pgnotify_gql.capture.script.  The body of a DO statement, for migrations: what an earlier version of
-- the watch or of this package left behind is found out when it runs.
--
-- A trigger whose function also serves an ancestor of the table belongs to the ancestor's watch.

declare
    pgn_unwanted record;
begin
    for pgn_unwanted in
        with recursive family (oid) as (
            select pg_catalog.to_regclass({table})::pg_catalog.oid
            union
            select i.inhrelid from family join pg_catalog.pg_inherits as i on i.inhparent = family.oid
        ), ancestors (oid) as (
            select pg_catalog.to_regclass({table})::pg_catalog.oid
            union
            select i.inhparent from ancestors join pg_catalog.pg_inherits as i on i.inhrelid = ancestors.oid
        ), ours as (
            select t.tgrelid, t.tgname, t.tgfoid,
                   pg_catalog.split_part(pg_catalog.obj_description(t.oid, 'pg_trigger'), ' ', 3) as label
            from pg_catalog.pg_trigger as t
            join pg_catalog.pg_proc as p on p.oid = t.tgfoid
            join pg_catalog.pg_namespace as n on n.oid = p.pronamespace and n.nspname = 'pgnotify_gql'
            where not t.tgisinternal and t.tgparentid = 0
        )
        select ours.tgname as name, ours.tgrelid::pg_catalog.regclass as carrier
        from ours join family on family.oid = ours.tgrelid
        where ours.tgname <> all ({kept}) and (
            ours.label = {label}
            or ours.tgrelid = pg_catalog.to_regclass({table}) and not exists (
                select from ours as higher join ancestors on ancestors.oid = higher.tgrelid
                where higher.tgfoid = ours.tgfoid and higher.tgrelid <> ours.tgrelid
            )
        )
    loop
        execute pg_catalog.format('drop trigger %I on %s', pgn_unwanted.name, pgn_unwanted.carrier);
    end loop;
    for pgn_unwanted in
        select p.oid::pg_catalog.regprocedure as function
        from pg_catalog.pg_proc as p
        join pg_catalog.pg_namespace as n on n.oid = p.pronamespace and n.nspname = 'pgnotify_gql'
        where pg_catalog.starts_with(p.proname::pg_catalog.text, 'capture_')
          and not exists (select from pg_catalog.pg_trigger as t where t.tgfoid = p.oid)
    loop
        execute pg_catalog.format('drop function if exists %s', pgn_unwanted.function);
    end loop;
end
