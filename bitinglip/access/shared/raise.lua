-- Raises what was used to what the database says, where that is more: all that it holds was told
-- to Redis before, so less means that Redis has lost it.
--
-- KEYS  what was used in the day and in the month
-- ARGV  for each of both: the milliseconds that it is kept, and five amounts

local at = 1
for i = 1, 2 do
  for unit = 1, 5 do
    local known, told = redis.call('HGET', KEYS[i], tostring(unit)), ARGV[at + unit]
    if not known or tonumber(told) > tonumber(known) then
      redis.call('HSET', KEYS[i], tostring(unit), told)
    end
  end
  redis.call('PEXPIRE', KEYS[i], ARGV[at])
  at = at + 6
end
return 1
