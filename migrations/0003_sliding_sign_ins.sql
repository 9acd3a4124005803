-- A sign-in with a password ends auth.session_days after its last use: its expires_at moves on. A token that was made to
-- end at some time ends then.
ALTER TABLE tokens ADD COLUMN slides BOOLEAN NOT NULL DEFAULT FALSE;
