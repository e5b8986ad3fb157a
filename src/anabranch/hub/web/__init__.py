"""The page: a Starlette application over a :class:`~anabranch.hub.site.Site` and a run queue."""

from anabranch.hub.web.app import create_app

__all__ = ["create_app"]
