%% SPDX-License-Identifier: Apache-2.0
-module(telemetry_pt).
-export([new/1, list_for_event/2]).

new(Handlers) ->
    lists:foldl(
        fun(Handler, Map) ->
            maps:update_with(element(1, Handler), fun(Old) -> [Handler | Old] end, [Handler], Map)
        end,
        #{},
        Handlers
    ).

list_for_event(Map, Name) -> maps:get(Name, Map, []).
