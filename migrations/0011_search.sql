-- concurrently
-- Whoever searches may read every public channel: they are found without looking at all the others.
CREATE INDEX IF NOT EXISTS channels_public ON channels (id) WHERE kind = 'public';
