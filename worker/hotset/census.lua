-- Counts distinct images by subject over some slices of time. See census.py.
--
-- KEYS: for each subject its slices, the present one first.
-- ARGV: slices of a subject, seconds until a slice expires; for each subject: the number of its new
--       images, those images.
-- Returns how many images each has now, over all its slices.
local slices, expires, at, counts = tonumber(ARGV[1]), ARGV[2], 3, {}
for first = 1, #KEYS, slices do
  local images = tonumber(ARGV[at])
  if images > 0 then
    redis.call('PFADD', KEYS[first], unpack(ARGV, at + 1, at + images))
    redis.call('EXPIRE', KEYS[first], expires)
  end
  counts[#counts + 1] = redis.call('PFCOUNT', unpack(KEYS, first, first + slices - 1))
  at = at + 1 + images
end
return counts
