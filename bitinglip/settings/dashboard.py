"""Declares the settings of the dashboard."""

from pydantic import Field

from bitinglip.settings.sections import Section


class Dashboard(Section):
    enabled: bool = Field(
        True,
        description="serve the dashboard at /: pages for a browser, which sign in with an API key "
        "and show what its scopes allow",
    )
