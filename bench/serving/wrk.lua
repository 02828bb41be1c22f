-- Sends the requests of a file in turn; says at the end what came of it, as JSON.
-- wrk ... URL -- FILE
-- A line is the bytes of JSON in the body, or - where it is JSON as a whole, and the body in hex.
local requests, at = {}, 0

function init(args)
  for line in io.lines(args[1]) do
    local head, hex = line:match("^(%S+) (%x+)$")
    local body = hex:gsub("%x%x", function(digits) return string.char(tonumber(digits, 16)) end)
    local headers = { ["Content-Type"] = "application/json" }
    if head ~= "-" then
      headers["Content-Type"] = "application/octet-stream"
      headers["Inference-Header-Content-Length"] = head
    end
    requests[#requests + 1] = wrk.format("POST", nil, headers, body)
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"requests": %d, "seconds": %f, "p50_us": %d, "p99_us": %d, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout))
end
