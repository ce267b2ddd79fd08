%% SPDX-License-Identifier: Apache-2.0
%% Calls of a gen_server: the request goes to the server, the reply to an alias of the client.
%%
%%   calls N     answers "done calls CLIENT SERVER": two new processes, N calls of one by the other
-module(asking).
-behaviour(gen_server).
-export([start/0, main/0, client/2, init/1, handle_call/3, handle_cast/2]).

%% For erl -s asking.
start() -> spawn(?MODULE, main, []).

main() -> control:serve(fun(_) -> calls(1) end, fun command/2).

command(_Control, ["calls", N]) ->
    {Client, Server} = calls(list_to_integer(N)),
    ["done calls ", pid_to_list(Client), " ", pid_to_list(Server)].

calls(N) ->
    {ok, Server} = gen_server:start(?MODULE, none, []),
    {Client, Monitor} = spawn_monitor(?MODULE, client, [Server, N]),
    receive {'DOWN', Monitor, process, Client, normal} -> {Client, Server} end.

client(_Server, 0) -> ok;
client(Server, N) ->
    {answer, N} = gen_server:call(Server, N, 60000),
    client(Server, N - 1).

init(State) -> {ok, State}.
handle_call(Request, _From, State) -> {reply, {answer, Request}, State}.
handle_cast(_Request, State) -> {noreply, State}.
