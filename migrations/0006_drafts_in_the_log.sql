-- The event that told of a draft: it is emptied when the draft is no more.
ALTER TABLE drafts ADD COLUMN event_seq BIGINT;
