-- Evaluates the condition for every row of one side.
--
-- Placeholders: rows, condition.

perform pg_catalog.count(*) from {rows} as pgn where ({condition});
