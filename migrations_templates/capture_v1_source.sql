-- One side of the rows that a statement touched, its columns under names of our own.
--
-- Placeholders: missing (a value for each column we name, under the column's name), columns (the same columns, under
-- our names), rows (a transition table, or the row of a row-level trigger).
--
-- No user's write may fail because a column was renamed or dropped since the trigger was made.  So column names are
-- not qualified: PostgreSQL looks them up in pgn first, and only what pgn no longer has in pgn_missing.  That is
-- decided when the statement is planned and costs nothing when it runs.

(
    select pgn_row.*
    from (select {missing}) as pgn_missing
    cross join lateral (select {columns} from {rows} as pgn) as pgn_row
)
