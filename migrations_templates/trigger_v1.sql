-- One trigger of a watch.  Replacing it is one statement, so no write goes by uncaptured.
--
-- Placeholders: trigger, kind, table (qualified name), transitions (REFERENCING clause or nothing), level (row or
-- statement), function.
-- Rendered by: pgnotify_gql.capture.render.

create or replace trigger {trigger}
after {kind} on {table}
{transitions}
for each {level} execute function {function}()
