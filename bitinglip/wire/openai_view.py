"""All views of OpenAI's surface share this base."""

from bitinglip.errors import BitingLipError
from bitinglip.results.streams import sse
from bitinglip.wire.errors import error_body, name_as_openai
from bitinglip.wire.job_view import JobView


class OpenAIView(JobView):
    """Shows errors in OpenAI's shape."""

    def error_event(self, error: BitingLipError) -> bytes:
        name_as_openai(error, self._event_log.job.kind)
        return sse(error_body(error, self._request_id, openai=True))
