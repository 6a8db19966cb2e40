-- Gives back units of rates, or takes more of them, and leaves a place.
--
-- KEYS  the rates, then the key's places where one is left
-- ARGV  1 count of rates, 2 name of the place or "", then for each rate: quota, "1" (gives back) or
--       "-1" (takes more), amount whole, amount part

local function text(number) return string.format('%.0f', number) end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local rates, at = tonumber(ARGV[1]), 3
for i = 1, rates do
  local quota, sign = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local amount, amount_part = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  at = at + 4
  local found = redis.call('GET', KEYS[i])
  local whole, part = now, 0
  if found then
    local w, p, q, since = string.match(found, '^(%-?%d+) (%d+) (%d+) (%d+)$')
    whole, part = tonumber(w), tonumber(p)
    if tonumber(q) ~= quota then part = 0 end
    if tonumber(since) > now then whole = whole - (tonumber(since) - now) end
  end
  if sign > 0 then
    whole, part = whole - amount, part - amount_part
    if part < 0 then whole, part = whole - 1, part + quota end
  else
    whole, part = whole + amount, part + amount_part
    if part >= quota then whole, part = whole + 1, part - quota end
  end
  if whole >= now then
    local rest = text(math.ceil((whole - now) / 1000) + 1000)
    local state = text(whole) .. ' ' .. text(part) .. ' ' .. text(quota) .. ' ' .. text(now)
    redis.call('SET', KEYS[i], state, 'PX', rest)
  elseif found then
    redis.call('DEL', KEYS[i])
  end
end
if ARGV[2] ~= '' then redis.call('ZREM', KEYS[rates + 1], ARGV[2]) end
return 1
