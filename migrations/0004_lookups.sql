-- What the writer looks up is found by a key, however much is stored beside it.

-- Of a reply that stays in its thread: the number of the newest top-level message before it, so that a read mark finds
-- its number without reading all the replies in between. An index could tell it too, at the cost of every message.
ALTER TABLE messages ADD COLUMN after_no BIGINT;
UPDATE messages SET after_no = numbered.no FROM
    (SELECT channel_id, seq, MAX(message_no) OVER (PARTITION BY channel_id ORDER BY seq) AS no FROM messages) numbered
    WHERE numbered.channel_id = messages.channel_id AND numbered.seq = messages.seq AND messages.message_no IS NULL;

-- Who saved a message that is deleted.
CREATE INDEX saved_by_message ON saved (channel_id, seq);

-- The threads that somebody follows: all of them, and those of a channel that they leave.
DROP INDEX thread_follows_by_user;
CREATE INDEX thread_follows_by_user ON thread_follows (user_id, channel_id);
