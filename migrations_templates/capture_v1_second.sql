-- One row is the common case and gets a statement without windows and groups (2 us instead of 8).
--
-- Whether there is a second one, and not how many there are: an aggregate takes twice as long to set up (1.3 us more).
-- The limit is for PL/pgSQL, which would fetch all that it is given.
-- Placeholders: rows (name of a transition table), one, many.

perform from {rows} offset 1 limit 1;
if found then
    {many}
else
    {one}
end if;
