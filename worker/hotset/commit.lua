-- One atomic step of the store's history: compare, write, append, note. See layout.py.
--
-- KEYS: head, changes, audit, then the hash of each write.
-- ARGV: now in Unix ms; '1' if the epoch may begin here; how many changes the stream keeps; since
--       when the audit log is kept, in Unix ms; the numbers of writes, of tallies, of fields of the
--       audit log, and of changes;
--       for each write: field, expected value, new value ('' is no value, an expected '*' is any);
--       for each tally: its field of the head, what is added;
--       the fields of the audit log; the fields of the change, some ten of each.
-- Returns the new `epoch-seq`, or nil if something was not as expected: then nothing was written.
--
-- A script that ends in an error keeps what it wrote until then. So everything that may fail is
-- tried first, or is the first write.
local head, changes, audit = KEYS[1], KEYS[2], KEYS[3]
local now, may_begin, kept, noted_since = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local writes, tallies, notes = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local count = tonumber(ARGV[8])
local tally_at = 9 + 3 * writes
local note_at = tally_at + 2 * tallies
local change_at = note_at + notes

for i = 1, writes do
  local field, expected = ARGV[6 + 3 * i], ARGV[7 + 3 * i]
  local present = redis.call('HGET', KEYS[3 + i], field) or '' -- an error where it is no hash
  if expected ~= '*' and present ~= expected then
    return nil
  end
end
redis.call('XREVRANGE', audit, '+', '-', 'COUNT', 1) -- an error where it is no stream

local counted = { 'seq' }
for i = 0, tallies - 1 do
  counted[#counted + 1] = ARGV[tally_at + 2 * i]
end
for _, field in ipairs(counted) do
  local value = redis.call('HGET', head, field) or '0'
  if not string.match(value, '^%-?%d+$') or #value > 18 then
    return redis.error_reply('ERR ' .. field .. ' of the head is no number')
  end
end

local epoch = redis.call('HGET', head, 'epoch')
local begins = not epoch
if begins then
  if may_begin ~= '1' then
    return nil
  end
  epoch = now
  redis.call('DEL', changes)
end

local mark = ARGV[change_at + 1]
local previous = redis.call('HGET', head, 'mark') or ''
local seq = tonumber(redis.call('HGET', head, 'seq') or '0') + count
local version = epoch .. '-' .. string.format('%d', seq)
local oldest = epoch .. '-' .. string.format('%d', math.max(0, seq - kept))
-- First of the writes: an error where the stream is ahead of the head, or no stream.
redis.call(
  'XADD', changes, 'MINID', oldest, version, 'previous', previous, unpack(ARGV, change_at)
)

for i = 1, writes do
  local field, value = ARGV[6 + 3 * i], ARGV[8 + 3 * i]
  if value == '' then
    redis.call('HDEL', KEYS[3 + i], field)
  else
    redis.call('HSET', KEYS[3 + i], field, value)
  end
end

for i = 0, tallies - 1 do
  redis.call('HINCRBY', head, ARGV[tally_at + 2 * i], ARGV[tally_at + 2 * i + 1])
end
if begins then
  redis.call('HSET', head, 'epoch', epoch)
end
redis.call('HSET', head, 'seq', string.format('%d', seq), 'mark', mark)

redis.call(
  'XADD', audit, 'MINID', '~', noted_since, '*', 'version', version,
  unpack(ARGV, note_at, change_at - 1)
)
return version
