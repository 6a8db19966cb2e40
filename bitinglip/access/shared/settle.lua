-- Charges what a request has used, and frees what it reserved.
--
-- KEYS  what was used in the day and in the month, and what is reserved
-- ARGV  1 name of the reservation, 2 to 6 five amounts
-- Returns 1; 0 where what was used is not known any more, so that it is read from the database.
--
-- A reservation is charged once: where it is not there it was charged before, by a call whose answer
-- was lost, or its lease has ended, which the next comparison with the database makes good.

if redis.call('HDEL', KEYS[3], ARGV[1]) == 0 then return 0 end
local known = 1
for i = 1, 2 do
  if redis.call('EXISTS', KEYS[i]) == 0 then
    known = 0
  else
    for unit = 1, 5 do
      if ARGV[unit + 1] ~= '0' then
        redis.call('HINCRBY', KEYS[i], tostring(unit), ARGV[unit + 1])
      end
    end
  end
end
return known
