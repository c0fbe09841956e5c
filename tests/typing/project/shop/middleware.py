"""What is attached to the changes of a request."""

from django.http import HttpRequest

from pgnotify_gql.capture.middleware import ChangeContextMiddleware, Context


class TenantMiddleware(ChangeContextMiddleware):
    def context(self, request: HttpRequest) -> Context:
        return {**super().context(request), "tenant": request.get_host(), "tags": ["web", 1]}
