"""The chat page and the way in."""

from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.contrib.auth.views import LoginView
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from .management.commands.sample_data import USERS


@never_cache
@login_required
@require_safe
def chat(request: HttpRequest) -> HttpResponse:
    """The page itself; everything on it comes over GraphQL."""
    page = {
        "user": {"id": str(request.user.pk), "username": request.user.get_username()},
        "graphqlPath": "/graphql/",
        "psql": settings.DEMO_PSQL,
    }
    return render(request, "conversations/chat.html", {"page": page})


class SampleLoginView(LoginView):
    """Django's login, with a button for each sample user (in debug mode only)."""

    template_name = "conversations/login.html"
    redirect_authenticated_user = False

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        users = User.objects.filter(username__in=USERS).order_by("username")
        samples = [user.username for user in users if settings.DEBUG]
        return super().get_context_data(**kwargs, samples=samples)
