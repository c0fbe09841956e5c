"""
Settings of the example project, all from the environment.

They suit a laptop and a demonstration: the secret key is public and the
passwords of the sample users are their names. Do not put them on a network.
"""

import os
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

BASE_DIR = Path(__file__).resolve().parent


def flag(name: str, default: bool) -> bool:
    """0, false, no and off (in any case) mean no; unset or empty means the default; the rest means yes."""
    value = os.environ.get(name, "")
    return value.lower() not in {"0", "false", "no", "off"} if value else default


def database(url: str) -> dict[str, Any]:
    """
    Return the Django database of a libpq connection string.

    Both of libpq's forms are understood, a socket directory included:
    ``postgres://user:password@host:port/name?host=/socket/dir``. Parameters
    that Django has no key for (``sslmode``, ``connect_timeout``...) go to OPTIONS.
    """
    parameters = dict(conninfo_to_dict(url))
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parameters.pop("dbname", "postgres"),
        "USER": parameters.pop("user", ""),
        "PASSWORD": parameters.pop("password", ""),
        "HOST": parameters.pop("host", ""),
        "PORT": str(parameters.pop("port", "")),
        "OPTIONS": parameters,
    }


def channel_layer(redis_url: str, kind: str) -> dict[str, Any]:
    """Return the layer for one process (no Redis) or for many, of the given kind: ``core`` or ``pubsub``."""
    if not redis_url:
        return {"BACKEND": "channels.layers.InMemoryChannelLayer"}
    backends = {
        "core": "channels_redis.core.RedisChannelLayer",
        "pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
    }
    return {"BACKEND": backends[kind], "CONFIG": {"hosts": [redis_url]}}


REDIS_URL = os.environ.get("REDIS_URL", "")

DEBUG = flag("DEBUG", default=True)
SECRET_KEY = os.environ.get("SECRET_KEY", "for the demonstration only")
ALLOWED_HOSTS = [
    "localhost",
    "127.0.0.1",
    "[::1]",
    *filter(None, [os.environ.get("HOST"), *os.environ.get("ALLOWED_HOSTS", "").split(",")]),
]

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "graphene_django",
    "graphene_django_graphiql_static",
    "pgnotify_gql",
    "example.conversations",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
ROOT_URLCONF = "example.urls"
ASGI_APPLICATION = "example.asgi.application"

DATABASES = {"default": database(os.environ.get("DATABASE_URL") or "postgresql:///pgnotify_gql")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
CHANNEL_LAYERS = {"default": channel_layer(REDIS_URL, os.environ.get("REDIS_LAYER") or "core")}

# An inline listener feeds the sockets of its own process. With Redis there are many processes, and
# one `manage.py run_listener` beside them.
PGNOTIFY_GQL = {
    "INLINE_LISTENER": flag("PGNOTIFY_INLINE", default=not REDIS_URL),
    "DRAIN_WINDOW": float(os.environ.get("DRAIN_WINDOW") or 1),
}

GRAPHENE = {"SCHEMA": "example.schema.schema", "SUBSCRIPTION_PATH": "/graphql/"}

LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "chat"
LOGOUT_REDIRECT_URL = "login"

# Cookies do not know about ports: names of our own keep the demo from logging people out of whatever
# else they run on this machine.
SESSION_COOKIE_NAME = "pgnotify_example_session"

# GraphQL over HTTP answers a faulty query with status 400: for whoever asked, not for the log.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"django.request": {"level": "ERROR"}},
}

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "/static/"

# How to open a raw SQL session, as one pastes it into a terminal. The demo knows; others see a generic line.
DEMO_PSQL = os.environ.get("DEMO_PSQL") or 'psql "$DATABASE_URL"'
