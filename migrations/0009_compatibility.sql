-- While a hub is brought to a new release, programs of the old one run on the new schema. A program runs on a schema that is
-- newer than itself if it knows the migration that stands here. A migration that only adds to the schema leaves it as it
-- is; one that takes something away raises it, to the first migration whose program no longer used that.
CREATE TABLE compatibility (
    id BIGINT PRIMARY KEY NOT NULL CHECK (id = 1),
    oldest BIGINT NOT NULL
);
INSERT INTO compatibility (id, oldest) VALUES (1, 9);
