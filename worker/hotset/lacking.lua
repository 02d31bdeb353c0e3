-- Counts the references of one bucket that lack a view which their bank wants. See layout.py.
-- Descriptors stay on the server: only their first line is looked at.
--
-- KEYS: references, descriptors by one model, of the same bucket.
-- ARGV: for each bank: its name, and its views, comma-separated.
-- Returns name, count for each bank that has some. What cannot be read is not counted.
local wanted, counts = {}, {}
for i = 1, #ARGV, 2 do
  wanted[ARGV[i]] = ARGV[i + 1]
end

local rows = redis.call('HGETALL', KEYS[1])
for i = 1, #rows, 2 do
  local readable, reference = pcall(cjson.decode, rows[i + 1])
  local views = readable and type(reference) == 'table' and wanted[reference.bank]
  local blob = views and redis.call('HGET', KEYS[2], rows[i])
  local line = blob and string.match(blob, '^([a-z0-9_,]+)\n')
  if line then
    for view in string.gmatch(views, '[^,]+') do
      if not string.find(',' .. line .. ',', ',' .. view .. ',', 1, true) then
        counts[reference.bank] = (counts[reference.bank] or 0) + 1
        break
      end
    end
  end
end

local told = {}
for bank, count in pairs(counts) do
  told[#told + 1] = bank
  told[#told + 1] = count
end
return told
