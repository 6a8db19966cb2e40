-- Keeps the places and reservations that a gateway holds for a key, for another lease.
--
-- KEYS  the key's places, and what is reserved
-- ARGV  1 lease in microseconds, 2 count of places, their names, then for each reservation its name
--       and its five amounts in one text

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local lease, places = tonumber(ARGV[1]), tonumber(ARGV[2])
local ends, rest = string.format('%.0f', now + lease), string.format('%.0f', math.ceil(lease / 1000))
for i = 3, places + 2 do redis.call('ZADD', KEYS[1], ends, ARGV[i]) end
if places > 0 then redis.call('PEXPIRE', KEYS[1], rest) end
for i = places + 3, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ends .. ' ' .. ARGV[i + 1]) end
if #ARGV > places + 2 then redis.call('PEXPIRE', KEYS[2], rest) end
return 1
