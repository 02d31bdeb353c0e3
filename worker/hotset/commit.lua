-- One atomic step of the store's history: compare, write, append. See layout.py.
--
-- KEYS: head, changes, then the hash of each write.
-- ARGV: now in Unix ms; '1' if the epoch may begin here; '~' or '=' and the length the stream is
--       trimmed to; the number of writes;
--       for each write: field, expected value, new value ('' is no value, an expected '*' is any);
--       for each entry: its mark, the number of its other fields, those fields.
-- Returns the new `epoch-seq`, or nil if something was not as expected: then nothing was written.
local head, changes = KEYS[1], KEYS[2]
local now, may_begin, trim, length, writes = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])

for i = 1, writes do
  local field, expected = ARGV[3 + 3 * i], ARGV[4 + 3 * i]
  if expected ~= '*' and (redis.call('HGET', KEYS[2 + i], field) or '') ~= expected then
    return nil
  end
end

local epoch = redis.call('HGET', head, 'epoch')
if not epoch then
  if may_begin ~= '1' then
    return nil
  end
  epoch = now
  redis.call('DEL', changes)
  redis.call('HSET', head, 'epoch', epoch)
end

for i = 1, writes do
  local field, value = ARGV[3 + 3 * i], ARGV[5 + 3 * i]
  if value == '' then
    redis.call('HDEL', KEYS[2 + i], field)
  else
    redis.call('HSET', KEYS[2 + i], field, value)
  end
end

local seq
local at = 6 + 3 * writes
while at <= #ARGV do
  local mark, count = ARGV[at], tonumber(ARGV[at + 1])
  local previous = redis.call('HGET', head, 'mark') or ''
  seq = redis.call('HINCRBY', head, 'seq', 1)
  redis.call('HSET', head, 'mark', mark)
  redis.call(
    'XADD', changes, 'MAXLEN', trim, length, epoch .. '-' .. string.format('%d', seq),
    'mark', mark, 'previous', previous, unpack(ARGV, at + 2, at + 1 + count)
  )
  at = at + 2 + count
end
return epoch .. '-' .. string.format('%d', seq)
