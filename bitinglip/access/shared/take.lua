-- Takes units of rates, a place and a part of quotas for one request: all of it, or nothing.
--
-- KEYS  the rates; then, if a place is asked for, the key's places; then, if quotas are, what was
--       used in the day and in the month, and what is reserved
-- ARGV  1 count of rates, 2 "1" to only read, 3 most places or "-1" (none asked), 4 name of the
--       place or reservation, 5 lease in microseconds, 6 count of quotas, then
--       for each rate: quota, taken whole, taken part, most whole, most part (see ticks.py)
--       for each quota: 1 (day) or 2 (month), unit from 1 to 5, limit, "1" if it is drawn on
--       five amounts to reserve, if anything is to be reserved
-- Returns the time, whether there is a place, the places taken, whether all passes, "1" where what
--       was used is not known, then for each rate its whole and part before, and for each quota
--       what is used and reserved.
--
-- A rate is "whole part quota at": the time at which all is earned back is whole + part / quota
-- microseconds, part < quota, as it was known at the time "at". No sum reaches 2^53, so doubles
-- hold all of them exactly. A clock that went back moves the times with it.
--
-- Where the place or the reservation is there already, this is a call that is sent again because
-- its answer was lost: it takes nothing more, and answers as it did.

local function text(number) return string.format('%.0f', number) end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local rates, reads, most_places = tonumber(ARGV[1]), ARGV[2] == '1', tonumber(ARGV[3])
local name, lease, quotas = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local at, key = 7, rates + 1
local passes, again, answer = true, false, {}

local place, room, taken_places = nil, true, 0
if most_places >= 0 then
  place, key = KEYS[key], key + 1
  again = redis.call('ZSCORE', place, name) ~= false
  redis.call('ZREMRANGEBYSCORE', place, '-inf', text(now))
  taken_places = redis.call('ZCARD', place)
  room = again or taken_places < most_places
  passes = room
end

local writes = {}
for i = 1, rates do
  local quota, taken, taken_part = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local most, most_part = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  at = at + 5
  local whole, part = 0, 0
  local found = redis.call('GET', KEYS[i])
  if found then
    local w, p, q, since = string.match(found, '^(%-?%d+) (%d+) (%d+) (%d+)$')
    whole, part = tonumber(w), tonumber(p)
    if tonumber(q) ~= quota then part = 0 end
    if tonumber(since) > now then whole = whole - (tonumber(since) - now) end
  end
  answer[#answer + 1], answer[#answer + 2] = text(whole), text(part)
  if whole < now then whole, part = now, 0 end
  whole, part = whole + taken, part + taken_part
  if part >= quota then whole, part = whole + 1, part - quota end
  local last, last_part = now + most, most_part
  if whole > last or (whole == last and part > last_part) then passes = false end
  writes[i] = {text(whole) .. ' ' .. text(part) .. ' ' .. text(quota) .. ' ' .. text(now),
               text(math.ceil((whole - now) / 1000) + 1000)}
end

-- Above 2^53 a double is off by one part in 2^53: of an amount in microseconds or pixels that is
-- less than one up to 285 years, or 9 billion megapixels.
local unknown, reserved, held = 0, nil, {0, 0, 0, 0, 0}
if quotas > 0 then
  local used = {KEYS[key], KEYS[key + 1]}
  reserved = KEYS[key + 2]
  if redis.call('EXISTS', used[1], used[2]) < 2 then
    unknown, passes = 1, false
  else
    local found = redis.call('HGETALL', reserved)
    for i = 1, #found, 2 do
      local ends, a, b, c, d, e = string.match(found[i + 1], '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
      if tonumber(ends) <= now then
        redis.call('HDEL', reserved, found[i])
      elseif found[i] == name then
        again = true
      else
        for unit, amount in ipairs({a, b, c, d, e}) do held[unit] = held[unit] + tonumber(amount) end
      end
    end
    for i = 1, quotas do
      local unit = tonumber(ARGV[at + 1])
      local count = redis.call('HGET', used[tonumber(ARGV[at])], ARGV[at + 1]) or '0'
      if ARGV[at + 3] == '1' and tonumber(count) + held[unit] >= tonumber(ARGV[at + 2]) then
        passes = false
      end
      answer[#answer + 1], answer[#answer + 2] = count, text(held[unit])
      at = at + 4
    end
  end
end

if again then
  for i = 1, rates do  -- they hold already what is taken here
    local quota, taken, taken_part = unpack(ARGV, 2 + 5 * i, 4 + 5 * i)
    local whole, part = tonumber(answer[2 * i - 1]) - taken, tonumber(answer[2 * i]) - taken_part
    if part < 0 then whole, part = whole - 1, part + quota end
    answer[2 * i - 1], answer[2 * i] = text(whole), text(part)
  end
  passes = unknown == 0
elseif passes and not reads then
  for i = 1, rates do redis.call('SET', KEYS[i], writes[i][1], 'PX', writes[i][2]) end
  local ends, rest = text(now + lease), text(math.ceil(lease / 1000))
  if place then
    redis.call('ZADD', place, ends, name)
    redis.call('PEXPIRE', place, rest)
  end
  if reserved and ARGV[at] then
    redis.call('HSET', reserved, name, ends .. ' ' .. table.concat(ARGV, ' ', at, at + 4))
    redis.call('PEXPIRE', reserved, rest)
  end
end
return {text(now), room and 1 or 0, taken_places, passes and 1 or 0, unknown, unpack(answer)}
