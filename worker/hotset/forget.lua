-- Forget a replica's name (ARGV[1], in the set KEYS[1]) unless it has told anew (KEYS[2]) meanwhile.

if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('SREM', KEYS[1], ARGV[1])
end
