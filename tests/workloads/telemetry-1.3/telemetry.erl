%% SPDX-License-Identifier: Apache-2.0
%% A telemetry with the public interface of 1.3: spans, and an event for a handler that fails.
-module(telemetry).
-export([start/0, attach_many/4, detach/1, execute/2, execute/3, span/3]).

start() -> telemetry_handler_table:start().

attach_many(Id, Names, Function, Config) when is_function(Function, 4) ->
    telemetry_handler_table:insert(Id, Names, Function, Config).

detach(Id) -> telemetry_handler_table:delete(Id).

execute(Name, Measurements) -> execute(Name, Measurements, #{}).

execute([_ | _] = Name, Value, Metadata) when is_number(Value) ->
    execute(Name, #{value => Value}, Metadata);
execute([_ | _] = Name, Measurements, Metadata) when is_map(Measurements), is_map(Metadata) ->
    Handlers = telemetry_handler_table:list_for_event(Name),
    lists:foreach(
        fun(Handler) -> call(Handler, Name, Measurements, Metadata) end,
        Handlers
    ).

call({_, Id, Function, Config}, Name, Measurements, Metadata) ->
    try Function(Name, Measurements, Metadata, Config)
    catch Kind:Reason ->
        detach(Id),
        execute(
            [telemetry, handler, failure],
            #{monotonic_time => erlang:monotonic_time()},
            #{event_name => Name, kind => Kind, reason => Reason}
        )
    end.

span(Prefix, Metadata, Function) ->
    Start = erlang:monotonic_time(),
    execute(Prefix ++ [start], #{monotonic_time => Start}, Metadata),
    try Function() of
        {Result, Last} ->
            execute(Prefix ++ [stop], #{duration => erlang:monotonic_time() - Start}, Last),
            Result
    catch Kind:Reason:Stack ->
        Last = Metadata#{kind => Kind, reason => Reason, stacktrace => Stack},
        execute(Prefix ++ [exception], #{duration => erlang:monotonic_time() - Start}, Last),
        erlang:raise(Kind, Reason, Stack)
    end.
