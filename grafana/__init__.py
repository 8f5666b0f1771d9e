# SPDX-License-Identifier: Apache-2.0
"""Grafana's dashboards as code: `boards/` says what is shown, `look` how, `generate` writes the JSON.

Nothing of the agent imports this, and it imports nothing of the agent.
"""
