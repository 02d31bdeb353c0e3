-- A flood begins or ends: once over all replicas, and the audit log has it. See census.py.
--
-- KEYS: floods, audit.
-- ARGV: SADD or SREM; the subject; the oldest id that the log keeps; the fields of its entry.
-- Returns 1, or 0 if another replica was there before.
redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1) -- an error where it is no stream, before anything is written
local changed = redis.call(ARGV[1], KEYS[1], ARGV[2])
if changed == 1 then
  redis.call('XADD', KEYS[2], 'MINID', '~', ARGV[3], '*', unpack(ARGV, 4))
end
return changed
